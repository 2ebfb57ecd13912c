"""One child, from what it is started with to the last of its descendants."""
