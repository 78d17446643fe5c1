# @PLACE@
# The lines of 'rebaser hook sage'. They replace those with sage-flock and sage-rebase.sh.
#
# First way, with the installers' shared lock. Right when packages are built in parallel and write
# straight into SAGE_LOCAL, as SageMath does: while any package is being installed no DLL is replaced,
# so none is half copied and none changes under a program that an installer runs.

# Before the package is installed:
if [ "$UNAME" = "CYGWIN" ]; then
    mkdir -p "$SAGE_LOCAL/var/lock"
    exec 200>"$SAGE_LOCAL/var/lock/rebase.lock"
    @REBASER@ lock --fd 200 -s
fi

# After it was installed:
if [ "$UNAME" = "CYGWIN" ]; then
    @REBASER@ lock --fd 200 -u
    @REBASER@ run "$SAGE_LOCAL"
fi

# Second way, without it. Right when one package is installed at a time, or when packages are made
# elsewhere and their finished files renamed into SAGE_LOCAL. Nobody waits for an installer then. A DLL
# that is being written all the same is seen to be so, left alone, and done by its own package's run.

# After the package was installed:
if [ "$UNAME" = "CYGWIN" ]; then
    @REBASER@ run "$SAGE_LOCAL"
fi

# Either way: the package sagelib (build/pkgs/sagelib/spkg-install) rebases its virtual environment
# while descriptor 200 still holds the lock shared. The lock must be dropped first:
if [ "$UNAME" = "CYGWIN" ]; then
    @REBASER@ lock --fd 200 -u
    @REBASER@ run "$SAGE_VENV"
fi
