"""The machines: the store with its run database, the queue of runs, and the lanes that train them.

Prints nothing and parses no flags. What is done stands in the store; everything else here may be lost and rebuilt.
"""
