-- A name that stays while runs and models change.
INSERT INTO aliases VALUES ($alias, $run_id, $model_version);
