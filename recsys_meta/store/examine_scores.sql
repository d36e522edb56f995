-- What must hold of a published file, whoever wrote it: the name of each check and how often it is violated.
SELECT 'a score is not finite' AS name, count(*) AS violations
FROM scores WHERE NOT isfinite(score)
UNION ALL
SELECT 'a user has an item twice', coalesce(sum(times - 1), 0)
FROM (SELECT count(*) AS times FROM scores GROUP BY user_id, item_id)
UNION ALL
SELECT 'the ranks of a user are not 1, 2, 3, ..', count(*)
FROM (
    SELECT user_id FROM scores GROUP BY user_id
    HAVING min(rank) <> 1 OR max(rank) <> count(*) OR count(DISTINCT rank) <> count(*)
)
UNION ALL
SELECT 'a score is above that of the rank before', count(*)
FROM (SELECT score, lag(score) OVER (PARTITION BY user_id ORDER BY rank) AS before FROM scores)
WHERE score > before
UNION ALL
SELECT 'a user has scores and no status', count(DISTINCT user_id)
FROM scores ANTI JOIN user_status USING (user_id)
UNION ALL
SELECT 'a user has more than one status', count(*) - count(DISTINCT user_id)
FROM user_status;
