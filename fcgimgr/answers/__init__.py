"""How far the answers on a connection are, told from the bytes that go by. Sans-IO, for who only looks on."""
