-- What must hold before a run is published: the name of each check and how often it is violated.
WITH neighbours AS ( -- every row beside the one before it in the user's list; the scores are in order
    SELECT
        rank,
        score,
        propensity,
        CASE WHEN user_id IS NOT DISTINCT FROM lag(user_id) OVER () THEN lag(rank) OVER () ELSE 0 END AS rank_before,
        CASE WHEN user_id IS NOT DISTINCT FROM lag(user_id) OVER () THEN lag(score) OVER () END AS score_before,
        lag(propensity) OVER () AS propensity_before
    FROM staged_scores
)
SELECT 'a requested user has no status' AS name, count(*) AS violations
FROM requested_users ANTI JOIN staged_user_status USING (user_id)
UNION ALL
SELECT 'a user has more than one status', count(*) - count(DISTINCT user_id)
FROM staged_user_status
UNION ALL
SELECT 'a user has a status and was not requested', count(*)
FROM staged_user_status ANTI JOIN requested_users USING (user_id)
UNION ALL
SELECT 'a user has scores and no status', count(DISTINCT user_id)
FROM staged_scores ANTI JOIN staged_user_status USING (user_id)
UNION ALL
SELECT 'a user has no scores and no reason that says why', count(*)
FROM staged_user_status ANTI JOIN staged_scores USING (user_id)
WHERE reason IS NULL OR NOT list_contains($reasons_without_scores, reason)
UNION ALL
SELECT 'ranks are not 1, 2, 3, ..', count(*)
FROM neighbours WHERE rank IS DISTINCT FROM rank_before + 1
UNION ALL
SELECT 'a rank is beyond top_k', count(*)
FROM staged_scores WHERE rank > $top_k
UNION ALL
SELECT 'a user has an item twice', coalesce(sum(times - 1), 0)
FROM (SELECT count(*) AS times FROM staged_scores GROUP BY user_id, item_id)
UNION ALL
SELECT 'a score is above that of the rank before', count(*)
FROM neighbours WHERE score > score_before AND propensity = 1 AND propensity_before = 1 -- what is drawn is in no order
UNION ALL
SELECT 'a score is not finite', count(*)
FROM staged_scores WHERE NOT isfinite(score)
UNION ALL
SELECT 'a propensity is not above 0 and at most 1', count(*)
FROM staged_scores WHERE NOT (propensity > 0 AND propensity <= 1)
UNION ALL
SELECT 'scores have an unknown source', count(*)
FROM staged_scores WHERE NOT list_contains($sources, source)
UNION ALL
SELECT 'a status has an unknown source', count(*)
FROM staged_user_status WHERE NOT list_contains($sources, source)
UNION ALL
SELECT 'scores belong to another run', count(*)
FROM staged_scores WHERE run_id <> $run_id
UNION ALL
SELECT 'a number of examples is negative', count(*)
FROM (SELECT n_support FROM staged_scores UNION ALL SELECT n_support FROM staged_user_status) WHERE n_support < 0
UNION ALL
SELECT 'scores have an empty cell', count(*)
FROM staged_scores
WHERE run_id IS NULL OR user_id IS NULL OR item_id IS NULL OR rank IS NULL OR score IS NULL OR propensity IS NULL
    OR source IS NULL OR n_support IS NULL OR model_version IS NULL OR generated_at IS NULL
UNION ALL
SELECT 'a status has an empty cell', count(*)
FROM staged_user_status WHERE user_id IS NULL OR source IS NULL OR n_support IS NULL
UNION ALL
SELECT 'a vector is empty or not finite', count(*)
FROM staged_user_vectors
WHERE user_id IS NULL OR vector IS NULL OR run_id IS DISTINCT FROM $run_id
    OR NOT coalesce(list_bool_and(list_transform(vector, lambda x: isfinite(x) AND x IS NOT NULL)), false)
UNION ALL
SELECT 'a user has a vector twice or no status', count(*) - count(DISTINCT user_id) FILTER (known)
FROM (
    SELECT user_id, user_id IN (SELECT user_id FROM staged_user_status) AS known FROM staged_user_vectors
);
