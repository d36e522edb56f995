-- The run in force before this one.
ATTACH @path AS previous (READ_ONLY);
