-- How many rows of each table the file got; compared with the parts before the file is published.
SELECT 'scores' AS name, (SELECT count(*) FROM scores) AS rows, (SELECT count(*) FROM staged_scores) AS expected
UNION ALL
SELECT 'user_status', (SELECT count(*) FROM user_status), (SELECT count(*) FROM staged_user_status)
UNION ALL
SELECT 'user_vectors', (SELECT count(*) FROM user_vectors), (SELECT count(*) FROM staged_user_vectors)
UNION ALL
SELECT 'quarantine', (SELECT count(*) FROM quarantine), (SELECT count(*) FROM staged_quarantine);
