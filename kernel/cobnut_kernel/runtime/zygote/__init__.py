"""The fork server: a process that has a kernel ready, and forks it when its owner asks.

Its owner runs it as `python -P -m cobnut_kernel.runtime.zygote FD`, where FD is one end of a pair of unix sockets of
type SOCK_SEQPACKET: nobody else can reach it. What they say to each other is `cobnut_kernel.protocol.fork`. The end of
the owner's end is the end of the owner, however he ended: the kernels that are to end with him are ended then, those
of other makes too, and their files removed.

Laws of the file:

* One thread, and nothing in the process that does not survive a fork.
* Whatever can fail is done before the fork: either a kernel runs, or nothing has happened.
* A kernel's number is its own until the owner was told of its end: nobody else reaps it, and signals go through here.
* A kernel inherits no descriptor but its own streams.
* One kernel is forked ahead and waits for its request; it is nobody's before, and ends with us.
"""
