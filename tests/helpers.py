"""What several tests need to say what they mean."""


def named(cases, name):
    "The case of that name: of a list of cases, or the values of that name in a dictionary with one entry a case."
    case = next(case for case in cases if case.name == name)
    return cases[case] if isinstance(cases, dict) else case
