"""Is a model good enough at a task? Cases, scores, statistics and verdicts, for the operator and `flotilla evaluate`.

check        what is wrong with an Evaluation that its schema cannot tell. Pure
revision     what a target serves, as a digest; a verdict is about one revision. Pure
"""
