"""umpack: channel packs for an Asterisk PBX."""
