/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * libsyrup: Syrup for applications written in C. Link with -lsyrup.
 *
 * An application deploys policies, registers its sockets and threads to be
 * chosen by them, and shares Maps with them. The library speaks to the daemon
 * syrupd and needs no privilege of its own.
 *
 *   SYRUP_APP     the app's name: 1 to 63 of a-z, 0-9 and '-'; otherwise the
 *                 executable's name, in lower case, other characters made '-'
 *   SYRUP_SOCKET  where the daemon listens; otherwise /run/syrup/syrupd.sock
 *   SYRUP_BPFFS   where the daemon pins; otherwise /sys/fs/bpf/syrup
 *
 * All functions may be called from any thread at any time, and block until it
 * is done; after fork() too, unless another thread was in syr_map_mmap() or
 * syr_map_munmap() then. They read the variables above when they are called, so no
 * other thread may change the environment meanwhile: see setenv(3). None installs a
 * signal handler, starts a thread or ends the process.
 *
 * On failure functions return a negative errno; syr_last_error() has the words.
 * Any function that asks the daemon (syr_deploy_policy, syr_unload, syr_map_open,
 * syr_register_*, syr_unregister_*) can fail with
 *   -ECONNREFUSED  no daemon answers
 *   -ETIMEDOUT     it did not answer within 120 s, or clang did not end within 60 s
 *   -EPERM         it does not let this user do that
 *   -EINVAL        a name, index or argument makes no sense
 *   -EIO           it met a defect, or the system refused something unexpected
 */
#ifndef SYRUP_SYRUP_H
#define SYRUP_SYRUP_H

#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The version of this header, as one number that grows: two of them compare by it.
 * A library of the same major version has all that this header declares, if it is
 * not older; its file is libsyrup.so.MAJOR.
 */
#define SYRUP_VERSION_MAJOR 0
#define SYRUP_VERSION_MINOR 1
#define SYRUP_VERSION_PATCH 0
#define SYRUP_VERSION       (SYRUP_VERSION_MAJOR << 16 | SYRUP_VERSION_MINOR << 8 | SYRUP_VERSION_PATCH)

/* The version of the library that is running, in the form of SYRUP_VERSION. */
uint32_t syr_version(void);

/*
 * Makes a policy live at a hook ("socket-select", "scx-syrup", ...) for this
 * app: a C file (path ending in .c), a compiled policy (.o), or the name of a
 * policy that ships with the hook. One that the app has there already is
 * replaced, atomically. The policy stays when this process ends; `syrupctl
 * unload` takes it away.
 *
 * A C file is compiled with clang: by the daemon for root, else in this process.
 *
 * Returns a descriptor of the policy's program, which names the deployment to
 * the kernel (its id and statistics); end it with close(), which changes nothing
 * about the policy.
 *   -ENOENT      no such file
 *   -ENOEXEC     the policy does not compile, or does what no policy may
 *   -EACCES      the kernel's verifier refuses it
 *   -EOPNOTSUPP  the kernel cannot host the hook, or there is no clang
 *   -EALREADY    the policy is live and stays, only the descriptor could not be
 *                had; another call gives one
 * After any other of these the app has the policy that it had before; after
 * -ETIMEDOUT and -EIO it may have either, and syr_last_error() says what is known.
 */
int syr_deploy_policy(const char *policy_file, const char *hook);

/*
 * The same with other values for some of the policy's parameters (SYRUP_PARAM):
 * an array of "NAME=VALUE" that ends with NULL; NULL: none. Values are integers,
 * decimal or hexadecimal after 0x, or true and false, in the units that the policy
 * gives them. Parameters that are not named have the policy's own values, also
 * where it replaces one that had others.
 *
 * Returns what syr_deploy_policy() does.
 *   -EINVAL  also: the policy has no such parameter, or the value does not fit it
 */
int syr_deploy_policy_with(const char *policy_file, const char *hook, const char *const *params);

/*
 * Takes the policy of `app` (NULL: this process's) at `hook` away. Its sockets and
 * threads stay and get the kernel's default again. With an app's last policy its
 * Maps go: descriptors and memory of them stay valid, and no policy sees them.
 *
 * Returns 0.
 *   -ENOENT  the app has no policy there
 */
int syr_unload(const char *app, const char *hook);

/*
 * Opens a Map: its name in the policy, for this app; or the path of its pin,
 * /sys/fs/bpf/syrup/APP/maps/NAME. Returns a descriptor for the functions
 * below; end it with syr_map_close().
 *   -ENOENT  no such pin; or this app has no such Map: a policy that declares it
 *            must be deployed
 */
int syr_map_open(const char *path);

/*
 * Closes a Map. Its memory (syr_map_mmap) stays mapped. Returns 0.
 *   -EBADF, -EINVAL  not a Map's descriptor; it is left as it was
 */
int syr_map_close(int map_fd);

/*
 * Reads or writes the value of `key`, for Maps with 8-byte values. Both take
 * about a microsecond: use syr_map_mmap() on hot paths. Return 0.
 *   -ENOENT  key is not below the Map's number of entries
 *   -EINVAL  values of this Map have another size
 *   -EBADF   not an open descriptor
 */
int syr_map_lookup_elem(int map_fd, uint32_t key, uint64_t *value);
int syr_map_update_elem(int map_fd, uint32_t key, uint64_t value);

/*
 * Maps a Map into memory, for reading and writing without system calls. Entry
 * i begins at byte i * ((value size + 7) / 8 * 8): for the usual 8-byte values
 * it is element i of an array of uint64_t. Use atomic accesses
 * (__atomic_load_n, __atomic_store_n, __atomic_fetch_add): policies and other
 * threads see each at once. The memory outlives the descriptor.
 *
 * Returns NULL on failure and sets errno: EBADF, EINVAL (not a Map, or not
 * made to be mapped), ENOMEM.
 */
void *syr_map_mmap(int map_fd);

/*
 * Unmaps memory from syr_map_mmap(). Returns 0.
 *   -EINVAL  not an address that syr_map_mmap() returned
 */
int syr_map_munmap(void *address);

/*
 * Makes a bound socket an executor of this app's packet policies, under
 * `index`; -1: the one it has, else the next free one. An index in use is given to this socket.
 * Indexes count in each SO_REUSEPORT group (protocol, address and port) by itself, and a
 * deployment has up to 64 of these; the policy sees a group's packets from its first socket on.
 * A socket that is closed leaves by itself.
 *
 * Returns the index.
 *   -ENOENT  this app has no packet policy: the kernel's default decides
 *   -EBUSY   the port is another app's
 *   -EINVAL  the socket is not bound with SO_REUSEPORT, or to none of the deployment's ports, or
 *            there are too many
 *   -EBADF   not an open descriptor
 */
int syr_register_socket(int fd, int index);

/*
 * Ends that: no verdict reaches the socket any more, and its index is free. A policy
 * that names the index meanwhile gets the kernel's choice, as with a closed socket,
 * and `syrupctl status` counts it; taking the highest index out leaves no gap. The
 * socket stays in its SO_REUSEPORT group, where the kernel's hash may choose it for
 * what the policy passes.
 *
 * Returns 0.
 *   -ENOENT  it is not registered, or this app has no packet policy
 *   -EINVAL  it is no socket
 *   -EBADF   not an open descriptor
 */
int syr_unregister_socket(int fd);

/*
 * Hands a thread to this app's thread policy, under `index` (what the policy
 * sees as t->index); -1: the one it has, else the next free one. tid 0 is the
 * calling thread. A worker that registers its socket and itself under one index
 * lets a packet policy name the thread it wakes. A thread that ends leaves by
 * itself.
 *
 * Returns the index.
 *   -ENOENT  this app has no thread policy: the kernel's default scheduler runs it
 *   -ESRCH   there is no such thread
 *   -EBUSY   another app has it, or this one or its user has as many as it may
 *   -EPERM   it is another user's
 *   -EINVAL  it is the kernel's own, or SCHED_DEADLINE
 */
int syr_register_thread(pid_t tid, int index);

/*
 * Ends that: the kernel runs the thread again, in the class that it was registered from,
 * and its index is free. tid 0 is the calling thread. Threads that it started meanwhile
 * stay with the policy.
 *
 * Returns 0.
 *   -ENOENT  this app has no thread policy
 *   -ESRCH   there is no such thread, or it is not registered
 */
int syr_unregister_thread(pid_t tid);

/*
 * Why the last function that failed in this thread did so: what, on which
 * object, in the compiler's, the verifier's or the kernel's own words, and what
 * to do. Empty if none failed. Valid until the next failure in this thread.
 */
const char *syr_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* SYRUP_SYRUP_H */
