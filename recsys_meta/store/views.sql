-- What readers ask for most.
CREATE VIEW latest_scores AS
SELECT * FROM scores;

CREATE VIEW latest_user_lists AS
SELECT
    user_id,
    count(*)::INTEGER AS n_items,
    list(item_id ORDER BY rank) AS item_ids,
    list(score ORDER BY rank) AS scores,
    list(propensity ORDER BY rank) AS propensities
FROM scores
GROUP BY user_id;

-- Users with fewer examples than the night calls cold; all of them where it named no bound.
CREATE VIEW cold_users AS
SELECT * FROM user_status
WHERE n_support < coalesce(@cold_below, n_support + 1);

CREATE VIEW run_diff AS
SELECT
    user_id,
    count(*) FILTER (now.rank IS NOT NULL AND before.rank IS NOT NULL)::INTEGER AS n_kept,
    count(*) FILTER (before.rank IS NULL)::INTEGER AS n_entered,
    count(*) FILTER (now.rank IS NULL)::INTEGER AS n_left,
    coalesce(list(item_id ORDER BY now.rank) FILTER (now.rank IS NOT NULL AND before.rank IS NOT NULL), []) AS kept,
    coalesce(list(item_id ORDER BY now.rank) FILTER (before.rank IS NULL), []) AS entered,
    coalesce(list(item_id ORDER BY before.rank) FILTER (now.rank IS NULL), []) AS "left"
FROM (SELECT user_id, item_id, rank FROM scores) AS now
FULL JOIN previous_ranks AS before USING (user_id, item_id)
GROUP BY user_id;
