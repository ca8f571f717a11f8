"""A folder of the host that is copied into a sandbox, and whose changes are copied back.

manifest    what was on both sides when it was copied in
changes     what the guest has done since, by comparing two listings
merge       the host's side: what has changed meanwhile is kept, and nothing is lost
staging     where what was fetched waits until all has come
copying     the whole way, in and back
"""
