#!/bin/sh
# machine.sh NAMESPACE COMMAND...: runs a command as on a machine of its own: in that network namespace, and with a
# shared memory of its own, since processes of two machines share none.
namespace="$1"
shift
exec ip netns exec "$namespace" unshare --mount sh -c 'mount -t tmpfs tmpfs /dev/shm && exec "$@"' sh "$@"
