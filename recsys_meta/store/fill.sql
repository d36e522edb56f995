-- From the parts to the published tables; in order, so that a user's rows lie together and need no index.
INSERT INTO scores BY NAME SELECT * FROM staged_scores;
INSERT INTO user_status BY NAME SELECT * FROM staged_user_status ORDER BY user_id;
INSERT INTO user_vectors BY NAME SELECT * FROM staged_user_vectors ORDER BY user_id;
INSERT INTO quarantine BY NAME SELECT * FROM staged_quarantine;
