"""The daemon's face to its operators: views, the control API and the client that speaks to it."""
