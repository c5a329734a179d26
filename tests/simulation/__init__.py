"""A simulator of the whole program on one store in memory, which fails as stores and disks do.

Real commands (embed, reindex, clean, purge, rollback, ..) run as processes that take turns at every operation on the
store, in an order that a seed decides. They can be stopped or die there, an answer can get lost, the clock can jump.
Nothing of the program is replaced but the store below it, its clock, its random names, and the sum that a tiny model does.

    scheduler     whose turn it is, who dies, whose answer is lost
    object_store  a bucket in memory
    file_system   a disk in memory, below the program's own code for disks
    seams         puts these in the place of the real ones
    corpus        the source and the configuration, and how they are edited
    world         a store, a corpus, what happened to them, and how a command may end
    commands      each command as the work of a process
    watch         what must hold after each operation
    checks        what must hold when nobody works
    histories     random histories
    pairs         every stop point of pairs of commands
    campaign      many of both, on all cores

    python -m tests.simulation --histories 1000 --seed 1
    python -m tests.simulation --histories 1 --seed 7 --log
"""
