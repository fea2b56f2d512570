"""``posedrop up``: the whole stack in one process and one folder, for one machine."""
