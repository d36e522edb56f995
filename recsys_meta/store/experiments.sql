-- What analyses of experiments found; one experiment_id for each analysis with its settings, whose rows a rerun replaces.
CREATE TABLE IF NOT EXISTS experiments (
    experiment_id VARCHAR NOT NULL,
    experiment VARCHAR, -- null where the table of exposures names none
    treatment VARCHAR NOT NULL,
    control VARCHAR NOT NULL,
    verdict VARCHAR NOT NULL,
    reasons VARCHAR[] NOT NULL,
    reading VARCHAR NOT NULL, -- once or always
    first_exposure TIMESTAMPTZ NOT NULL,
    last_row TIMESTAMPTZ NOT NULL,
    users_control BIGINT NOT NULL,
    users_treatment BIGINT NOT NULL,
    expected_share DOUBLE NOT NULL, -- of the treatment, among the users of both
    sample_ratio_p_value DOUBLE NOT NULL,
    users_crossed BIGINT NOT NULL, -- seen in more than one variant
    rows_before_exposure BIGINT NOT NULL, -- of outcomes, not counted
    finished_at TIMESTAMPTZ NOT NULL,
    version VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS experiment_effects ( -- treatment - control
    experiment_id VARCHAR NOT NULL,
    treatment VARCHAR NOT NULL,
    segment VARCHAR NOT NULL,
    metric VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    guardrail BOOLEAN NOT NULL,
    users_control BIGINT NOT NULL,
    users_treatment BIGINT NOT NULL,
    control_mean DOUBLE,
    treatment_mean DOUBLE,
    effect DOUBLE,
    low DOUBLE, -- for one reading
    high DOUBLE,
    relative DOUBLE,
    relative_low DOUBLE,
    relative_high DOUBLE,
    p_value DOUBLE,
    always_low DOUBLE, -- for looking on any day
    always_high DOUBLE,
    always_p_value DOUBLE,
    reading VARCHAR NOT NULL,
    p_adjusted DOUBLE,
    minimum_detectable DOUBLE,
    variance_reduction DOUBLE,
    verdict VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS experiment_looks ( -- the effect until the end of each day
    experiment_id VARCHAR NOT NULL,
    treatment VARCHAR NOT NULL,
    metric VARCHAR NOT NULL,
    day DATE NOT NULL,
    users_control BIGINT NOT NULL,
    users_treatment BIGINT NOT NULL,
    control_mean DOUBLE NOT NULL,
    treatment_mean DOUBLE NOT NULL,
    effect DOUBLE NOT NULL,
    error DOUBLE NOT NULL,
    low DOUBLE NOT NULL,
    high DOUBLE NOT NULL,
    p_value DOUBLE NOT NULL,
    once_low DOUBLE NOT NULL,
    once_high DOUBLE NOT NULL,
    once_p_value DOUBLE NOT NULL
);
CREATE TABLE IF NOT EXISTS experiment_aa ( -- random splits of the same users
    experiment_id VARCHAR NOT NULL,
    metric VARCHAR NOT NULL,
    analysis VARCHAR NOT NULL, -- by user, or by row
    draws BIGINT NOT NULL,
    users BIGINT NOT NULL,
    false_positives BIGINT NOT NULL,
    rate DOUBLE NOT NULL,
    rate_low DOUBLE NOT NULL,
    rate_high DOUBLE NOT NULL,
    uniform_p_value DOUBLE NOT NULL
);
CREATE TABLE IF NOT EXISTS interleavings ( -- which of two rankings users prefer, told from lists merged from both
    experiment_id VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    outcome VARCHAR NOT NULL, -- what is credited
    verdict VARCHAR NOT NULL, -- on B
    reasons VARCHAR[] NOT NULL,
    reading VARCHAR NOT NULL, -- once or always
    first_list DATE NOT NULL,
    last_row TIMESTAMPTZ NOT NULL,
    lists BIGINT NOT NULL,
    users_with_lists BIGINT NOT NULL,
    users BIGINT NOT NULL, -- who did anything with an item of their lists
    wins_a BIGINT NOT NULL,
    ties BIGINT NOT NULL,
    wins_b BIGINT NOT NULL,
    credit_a DOUBLE NOT NULL,
    credit_b DOUBLE NOT NULL,
    effect DOUBLE, -- (wins_b + ties / 2) / users - 1 / 2; null for fewer than two users, as what follows
    error DOUBLE,
    low DOUBLE, -- for one reading
    high DOUBLE,
    p_value DOUBLE,
    sign_p_value DOUBLE NOT NULL,
    deciding_low DOUBLE, -- of the reading that decides; null where there are too few users
    deciding_high DOUBLE,
    deciding_p_value DOUBLE,
    minimum_detectable DOUBLE,
    first_a BIGINT NOT NULL, -- lists whose first credited item is A's
    first_b BIGINT NOT NULL,
    draws_p_value DOUBLE NOT NULL, -- of a fair coin having drawn these
    outcomes BIGINT NOT NULL, -- rows on items of the list in force
    uncredited BIGINT NOT NULL, -- of these, on items of neither team
    not_listed BIGINT NOT NULL, -- rows on other items while a list was in force
    users_not_listed BIGINT NOT NULL,
    too_early BIGINT NOT NULL, -- rows before the first list of their user
    of_others BIGINT NOT NULL, -- rows of users without any list
    too_late BIGINT NOT NULL, -- rows after the planned end
    finished_at TIMESTAMPTZ NOT NULL,
    version VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS interleaving_looks ( -- the preference until the end of each day
    experiment_id VARCHAR NOT NULL,
    day DATE NOT NULL,
    users BIGINT NOT NULL,
    effect DOUBLE NOT NULL,
    error DOUBLE NOT NULL,
    low DOUBLE NOT NULL, -- for looking on any day
    high DOUBLE NOT NULL,
    p_value DOUBLE NOT NULL,
    once_low DOUBLE NOT NULL,
    once_high DOUBLE NOT NULL,
    once_p_value DOUBLE NOT NULL
);
