"""Pages that show what was learned: of a run, an evaluation and a study.

The room draws what it is handed. Training, studies and recipes gather it and call.
"""
