INSERT INTO users VALUES ('alice'), ('bob');
