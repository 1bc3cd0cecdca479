INSERT INTO listings (id, host, nightly, sleeps, policy, instant) VALUES
    ('cabin',  'henri@example.com', 12000, 4, 'flexible', 0),
    ('loft',   'hanna@example.com', 15000, 2, 'moderate', 1),
    ('castle', 'hugo@example.com',  90000, 9, 'strict',   1);
