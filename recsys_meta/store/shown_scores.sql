-- All scores.
SELECT score FROM scores;
