"""Hostile initiators at a target's port: malformed PDUs, broken rules, floods; and whether others notice.

A *case* is a script made from a seed and a number: how a connection begins, what is sent over it, how it ends. A
*witness* is a well-behaved session that must not notice; fresh logins in between and at the end must be served.

script      what a case consists of, and the bytes that come of it
craft, framing, logins, sessions, crowds    make scripts, one function a kind of case; kinds is the table of them
guard       lets nothing through that could change what a volume holds
line        one hostile connection: what is sent, what is answered
attacker    carries out a case
witness     well-behaved sessions
campaign    runs cases side by side until the time is over; report shows it
"""
