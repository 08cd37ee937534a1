CREATE TABLE users (name text PRIMARY KEY);
