"""nbval settings of this folder."""


def pytest_collection_modifyitems(items):
    """Leave stderr out of the comparison: progress bars and library warnings differ between machines."""
    for file in {item.parent for item in items}:
        if hasattr(file, "skip_compare"):  # an nbval notebook
            file.skip_compare = (*file.skip_compare, "stderr")
