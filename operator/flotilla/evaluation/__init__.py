"""Is a model good enough at a task? Cases, scores, statistics and verdicts, for the operator and `flotilla evaluate`.

A run, from left to right: `plan` (what to ask whom) and `dataset` (cases) go into `runner`, which asks by
`target_client`, scores by `scorers` and keeps each result in `results_store`; `summary` counts them; `verdict` judges
the counts by `statistics`; `outcome` writes a result as the status has it. `dataset_client` reads the bytes of a
dataset, and `job_runner` is the run as the container of a Job. `check` finds what is wrong with an Evaluation that its
schema cannot tell, and `revision` is what a target serves, as a digest: a verdict is about one revision.

Pure: check, dataset, outcome, plan, revision, scorers, statistics, summary, verdict.
"""
