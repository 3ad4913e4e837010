-- Which CA a device's certificate is of, while the gateway changes from one to another.

ALTER TABLE devices ADD COLUMN authority TEXT; -- its pin, 64 hexadecimal digits; NULL is the first one
