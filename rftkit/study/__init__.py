"""The recorded study: does the dynamic constraint win, where, and why. One resumable command.

`plan` is the protocol as data, `records` what is kept of a run, `run` does the work, `analysis` and
`figures` read the records. Nothing here decides how a policy is trained.
"""
