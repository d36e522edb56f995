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
CREATE TABLE IF NOT EXISTS off_policy_estimates ( -- the id is that of the analysis; differences of two policies too
    evaluation_id VARCHAR NOT NULL,
    analysis VARCHAR NOT NULL,
    policy VARCHAR NOT NULL,
    estimator VARCHAR NOT NULL,
    value DOUBLE, -- reward per logged row
    low DOUBLE, -- null: no bound
    high DOUBLE,
    standard_error DOUBLE,
    "interval" VARCHAR NOT NULL, -- its method
    level DOUBLE NOT NULL,
    setting DOUBLE, -- what a tuned estimator chose
    is_answer BOOLEAN NOT NULL, -- false everywhere where the verdict is "not identified", or none that was asked for can be it
    note VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS off_policy_diagnostics (
    evaluation_id VARCHAR NOT NULL,
    analysis VARCHAR NOT NULL,
    policy VARCHAR NOT NULL,
    verdict VARCHAR NOT NULL, -- trustworthy, doubtful or not identified
    reasons VARCHAR[] NOT NULL,
    "rows" BIGINT NOT NULL,
    users BIGINT NOT NULL,
    clustered BOOLEAN NOT NULL,
    origin VARCHAR NOT NULL, -- of the propensities: logged, stated, estimated or none
    rewarded_rows BIGINT NOT NULL,
    rewarded_users BIGINT NOT NULL,
    logged_value DOUBLE NOT NULL,
    support DOUBLE, -- null: not known
    matches DOUBLE NOT NULL,
    mean_weight DOUBLE, -- this and what follows: null without propensities
    mean_weight_low DOUBLE,
    mean_weight_high DOUBLE,
    effective_rows DOUBLE,
    largest_weight DOUBLE,
    largest_share DOUBLE,
    effective_rewarded_rows DOUBLE
);
