"""One file a runtime. The registry names them by string; nothing imports them but when they are asked."""
