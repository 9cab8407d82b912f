"""The demo: `nvlm demo` and `nvlm data build-demo`. Part of the repository, not of the wheel."""
