-- Devices are found by their names, and free addresses by number, however many there are.

ALTER TABLE devices ADD COLUMN address INTEGER; -- ipv4 as a number

WITH RECURSIVE part (id, rest, number, octets) AS (
    SELECT id, ipv4 || '.', 0, 0 FROM devices
    UNION ALL
    SELECT id, substr(rest, instr(rest, '.') + 1), number * 256 + CAST(substr(rest, 1, instr(rest, '.') - 1) AS INTEGER),
           octets + 1
    FROM part WHERE octets < 4
)
UPDATE devices SET address = part.number FROM part WHERE part.id = devices.id AND part.octets = 4;

CREATE UNIQUE INDEX devices_address ON devices (address);
CREATE INDEX devices_name ON devices (name);

ALTER TABLE invitations ADD COLUMN device TEXT REFERENCES devices (id); -- the one that it renews, instead of adding one
CREATE INDEX invitations_open ON invitations (expires) WHERE cancelled_at IS NULL;
CREATE INDEX invitation_uses_last ON invitation_uses (invitation, at, device);

CREATE INDEX events_target ON events (target, id);
