"""The FastCGI wire protocol, without I/O: records in, records out; a client on top.

records    the records themselves and the name-value pairs in them
arriving   a request as it comes to a server
common     what the requests of one web server have in common, to read them faster
response   a server's answer to one request, as events
client     a request and its complete answer (`Request`, sans-IO; `fetch`, blocking)
transport  the conversation over a socket
scoreboard what a worker shows of its requests, in memory that it shares with the manager
accessformat  what a line of its access log is made of

Standard library only, Python 3.9 or later: the worker loads this in the application's own interpreter.
"""
