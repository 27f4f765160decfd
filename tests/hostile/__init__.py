"""Runs among enemies: damaged files, kills, signals, full disks, second processes, closed pipes.

`test_damage` damages every file of a run in turn and starts again in this process, at a reduced size; `test_kills`
starts the command itself. Whatever happens, a start either ends in one sentence that names the file, or arrives at the
bits of a run that nothing has happened to.
"""
