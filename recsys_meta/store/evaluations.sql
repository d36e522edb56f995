-- What evaluations found; one evaluation_id for each protocol with its settings, whose rows a rerun replaces.
CREATE TABLE IF NOT EXISTS evaluations (
    evaluation_id VARCHAR PRIMARY KEY,
    name VARCHAR NOT NULL,
    finished_at TIMESTAMPTZ NOT NULL,
    protocol VARCHAR NOT NULL,
    judged VARCHAR NOT NULL, -- test or validation users
    metric VARCHAR NOT NULL, -- the one that learners are compared by
    higher_is_better BOOLEAN NOT NULL,
    default_learner VARCHAR NOT NULL,
    moment TIMESTAMPTZ, -- what was known lies before it
    users BIGINT NOT NULL,
    tasks BIGINT NOT NULL,
    seed BIGINT NOT NULL,
    version VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS evaluation_summary (
    evaluation_id VARCHAR NOT NULL,
    learner VARCHAR NOT NULL,
    shot VARCHAR NOT NULL,
    metric VARCHAR NOT NULL,
    mean DOUBLE,
    low DOUBLE,
    high DOUBLE,
    users BIGINT NOT NULL,
    users_without_relevant BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS evaluation_differences ( -- against the best baseline of the shot, and against "its prior"
    evaluation_id VARCHAR NOT NULL,
    learner VARCHAR NOT NULL,
    against VARCHAR NOT NULL,
    shot VARCHAR NOT NULL,
    metric VARCHAR NOT NULL,
    difference DOUBLE,
    low DOUBLE,
    high DOUBLE,
    users BIGINT NOT NULL,
    better DOUBLE, -- share of the users
    worse DOUBLE, -- share of the users: against "its prior" those whom adaptation harms
    verdict VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS evaluation_breakdown (
    evaluation_id VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    "group" VARCHAR NOT NULL,
    learner VARCHAR NOT NULL,
    shot VARCHAR NOT NULL,
    metric VARCHAR NOT NULL,
    mean DOUBLE,
    low DOUBLE,
    high DOUBLE,
    users BIGINT NOT NULL,
    users_without_relevant BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS evaluation_costs (
    evaluation_id VARCHAR NOT NULL,
    learner VARCHAR NOT NULL,
    model_version VARCHAR NOT NULL,
    fit_seconds DOUBLE, -- of the day it was fitted; null where that was not written down
    fit_cpu_seconds DOUBLE,
    fit_peak_mib BIGINT,
    judge_seconds DOUBLE NOT NULL,
    judge_cpu_seconds DOUBLE NOT NULL,
    judge_peak_mib BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS suite_ranks ( -- the id is that of the suite
    evaluation_id VARCHAR NOT NULL,
    learner VARCHAR NOT NULL,
    mean_rank DOUBLE NOT NULL,
    cells BIGINT NOT NULL, -- shots of evaluations that it was judged in
    best BIGINT NOT NULL,
    ratio DOUBLE -- to the best baseline, geometric mean; above 1 is better
);
CREATE TABLE IF NOT EXISTS tuning_trials ( -- the id is that of the tuning
    evaluation_id VARCHAR NOT NULL,
    learner VARCHAR NOT NULL,
    trial BIGINT NOT NULL,
    parameters VARCHAR NOT NULL, -- JSON
    value DOUBLE NOT NULL, -- mean of the chief metric over the shots, on validation users
    seconds DOUBLE NOT NULL,
    cpu_seconds DOUBLE NOT NULL,
    peak_mib BIGINT NOT NULL
);
