-- IPv6 of a network that containers share, where it has any. A container's address there has the number of its IPv4 one.
ALTER TABLE networks ADD COLUMN subnet6 TEXT;     -- fd12:3456:789a:bcde::/64
ALTER TABLE networks ADD COLUMN gateway6 TEXT;    -- fd12:3456:789a:bcde::1
