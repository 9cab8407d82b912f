"""Programs of others that open exports, run as they are: `scripts/test --clients`.

A client is a file here with `CLIENTS`: for each, what pip installs into an environment of its own,
and a function that runs it on an export and says what it compared. What runs inside such an
environment stands in `programs/`. To add one: write the file, name it in `__main__.CLIENT_FILES`.

The results of the last run of each client are kept in `results/`, and docs/compatibility.md is
written from them.
"""
