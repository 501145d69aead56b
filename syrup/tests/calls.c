// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Every call of syrup.h, one row each: the call, what it must return, and what
 * syr_last_error() must say of a failure. usage: calls packet|thread FOLDER
 *
 * FOLDER holds what is deployed: count.c, count.o (Map `calls`, always executor 0),
 * param.o (the executor that its parameter WHO names),
 * and what must be refused: broken.c, endless.c, garbage.o. The last line that is
 * printed is the number of rows; the process ends with 1 if one of them was not so.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <syrup/syrup.h>

#define SCHED_CLASS_EXT 7
#define MAX_EXECUTORS   256

static const char *folder;
static int rows, wrong;

static void row(int line, const char *call, long got, int so, const char *says)
{
	__atomic_fetch_add(&rows, 1, __ATOMIC_RELAXED);
	if (so && (!says || strstr(syr_last_error(), says)))
		return;
	__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
	fprintf(stderr, "calls.c:%d: %s is %ld, with '%s'\n", line, call, got, syr_last_error());
}

/* The call returns `expected`, and when it fails its words contain `says`. */
#define IS(call, expected, says)                                                                   \
	do {                                                                                       \
		long got = (call);                                                                 \
		row(__LINE__, #call, got, got == (expected), says);                                \
	} while (0)

/* The call gives a descriptor, which no program that is started inherits. */
#define GIVES_FD(variable, call)                                                                   \
	do {                                                                                       \
		(variable) = (call);                                                               \
		row(__LINE__, #call, (variable),                                                   \
		    (variable) >= 0 && fcntl((variable), F_GETFD) == FD_CLOEXEC, NULL);            \
	} while (0)

#define SO(condition) row(__LINE__, #condition, 0, !!(condition), NULL)

static const char *file(const char *name)
{
	static char paths[8][4096];
	static int next;
	char *path = paths[next++ % 8];

	snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
	return path;
}

/* A line of /proc/self/fdinfo, such as prog_id; -1: this is no such descriptor. */
static long fdinfo(int fd, const char *key)
{
	char path[64], line[256];
	size_t len = strlen(key);
	long value = -1;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "r");
	if (!info)
		return -1;
	while (fgets(line, sizeof(line), info))
		if (!strncmp(line, key, len) && line[len] == ':')
			value = strtol(line + len + 1, NULL, 10);
	fclose(info);
	return value;
}

static int closed_fd(void)
{
	int fd = open("/dev/null", O_RDONLY);

	close(fd);
	return fd;
}

/* ---- what is the same at every hook ---- */

/* Refused, whatever is deployed; none of it changes anything. */
static void bad_policies(const char *hook)
{
	IS(syr_deploy_policy(NULL, hook), -EINVAL, "policy_file is NULL");
	IS(syr_deploy_policy("count.c", NULL), -EINVAL, "hook is NULL");
	IS(syr_deploy_policy("", hook), -EINVAL, "no policy");
	IS(syr_deploy_policy("no-such-policy", hook), -EINVAL, "no-such-policy");
	IS(syr_deploy_policy(file("count.txt"), hook), -EINVAL, "count.txt");
	IS(syr_deploy_policy(file("count.o"), "no-such-hook"), -EINVAL, "no-such-hook");
	IS(syr_deploy_policy("/nowhere/policy.c", hook), -ENOENT, "/nowhere/policy.c");
	IS(syr_deploy_policy("/nowhere/policy.o", hook), -ENOENT, "/nowhere/policy.o");
	IS(syr_deploy_policy(file("garbage.o"), hook), -ENOEXEC, "garbage.o");
}

/* The same app name without a daemon: each function says so. */
static void no_daemon(const char *hook)
{
	char *socket = strdup(getenv("SYRUP_SOCKET"));

	setenv("SYRUP_SOCKET", "/nowhere/syrupd.sock", 1);
	IS(syr_deploy_policy(file("count.o"), hook), -ECONNREFUSED, "/nowhere/syrupd.sock");
	IS(syr_register_socket(0, -1), -ECONNREFUSED, "/nowhere/syrupd.sock");
	IS(syr_register_thread(0, -1), -ECONNREFUSED, "/nowhere/syrupd.sock");
	IS(syr_unregister_socket(0), -ECONNREFUSED, "/nowhere/syrupd.sock");
	IS(syr_unregister_thread(0), -ECONNREFUSED, "/nowhere/syrupd.sock");
	IS(syr_unload(NULL, hook), -ECONNREFUSED, "/nowhere/syrupd.sock");
	if (geteuid()) /* root finds the pin */
		IS(syr_map_open("calls"), -ECONNREFUSED, "/nowhere/syrupd.sock");
	setenv("SYRUP_SOCKET", socket, 1);
	free(socket);
}

static void bad_app_name(const char *hook)
{
	char *app = strdup(getenv("SYRUP_APP"));

	setenv("SYRUP_APP", "No Name", 1);
	IS(syr_deploy_policy(file("count.o"), hook), -EINVAL, "No Name");
	IS(syr_register_socket(0, -1), -EINVAL, "No Name");
	IS(syr_register_thread(0, -1), -EINVAL, "No Name");
	IS(syr_map_open("calls"), -EINVAL, "No Name");
	IS(syr_unregister_socket(0), -EINVAL, "No Name");
	IS(syr_unregister_thread(0), -EINVAL, "No Name");
	IS(syr_unload(NULL, hook), -EINVAL, "No Name");
	setenv("SYRUP_APP", app, 1);
	free(app);
}

/* Deploys by each way there is, the first of them where nothing is. */
static int deploys(const char *hook, const char *builtin, int compile)
{
	const char *ways[] = {builtin, file("count.o"), compile ? file("count.c") : builtin,
			      builtin, file("count.o")};
	long before = -1;
	int program = -1;

	for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++) {
		int held = program;

		GIVES_FD(program, syr_deploy_policy(ways[i], hook));
		/* A program, another one each time, and the last one is still ours. */
		SO(fdinfo(program, "prog_id") > 0);
		SO(fdinfo(program, "prog_id") != before);
		before = fdinfo(program, "prog_id");
		if (held >= 0)
			SO(close(held) == 0);
	}
	bad_policies(hook);
	return program;
}

static void maps(int program)
{
	uint64_t value = 7, *mapped, *again;
	int map, other, plain = open("/dev/null", O_RDONLY);
	char pin[4096];

	IS(syr_map_open(NULL), -EINVAL, "path is NULL");
	IS(syr_map_open(""), -EINVAL, "no Map name");
	IS(syr_map_open("no-name"), -EINVAL, "no Map name");
	IS(syr_map_open("other"), -ENOENT, "no Map 'other'");
	IS(syr_map_open("/nowhere/maps/calls"), -ENOENT, "/nowhere/maps/calls");

	GIVES_FD(map, syr_map_open("calls"));
	SO(fdinfo(map, "map_id") > 0);
	/* Another descriptor of the same Map, by the path of its pin. */
	snprintf(pin, sizeof(pin), "%s/%s/maps/calls", getenv("SYRUP_BPFFS"), getenv("SYRUP_APP"));
	GIVES_FD(other, syr_map_open(pin));
	SO(fdinfo(other, "map_id") == fdinfo(map, "map_id"));

	IS(syr_map_update_elem(map, 1, 42), 0, NULL);
	IS(syr_map_lookup_elem(other, 1, &value), 0, NULL);
	SO(value == 42);
	IS(syr_map_lookup_elem(map, 1, NULL), -EINVAL, "value is NULL");
	IS(syr_map_lookup_elem(map, 2, &value), -ENOENT, "entry 2");
	IS(syr_map_update_elem(map, 2, 1), -ENOENT, "entry 2");
	IS(syr_map_lookup_elem(map, UINT_MAX, &value), -ENOENT, NULL);
	IS(syr_map_update_elem(map, UINT_MAX, 1), -ENOENT, NULL);
	SO(value == 42);
	IS(syr_map_lookup_elem(-1, 0, &value), -EBADF, NULL);
	IS(syr_map_update_elem(-1, 0, 1), -EBADF, NULL);
	IS(syr_map_lookup_elem(closed_fd(), 0, &value), -EBADF, NULL);
	IS(syr_map_update_elem(closed_fd(), 0, 1), -EBADF, NULL);
	IS(syr_map_lookup_elem(plain, 0, &value), -EINVAL, NULL);
	IS(syr_map_update_elem(plain, 0, 1), -EINVAL, NULL);
	IS(syr_map_lookup_elem(program, 0, &value), -EINVAL, NULL);
	IS(syr_map_update_elem(program, 0, 1), -EINVAL, NULL);

	mapped = syr_map_mmap(map);
	again = syr_map_mmap(other);
	SO(mapped && again && mapped != again);
	SO(mapped[1] == 42);
	__atomic_store_n(&mapped[1], 43, __ATOMIC_RELEASE);
	SO(__atomic_load_n(&again[1], __ATOMIC_ACQUIRE) == 43);
	errno = 0;
	SO(!syr_map_mmap(-1) && errno == EBADF);
	SO(!syr_map_mmap(closed_fd()) && errno == EBADF);
	SO(!syr_map_mmap(plain) && errno == EINVAL);
	SO(!syr_map_mmap(program) && errno == EINVAL);

	/* Closing what is no Map leaves it open. */
	IS(syr_map_close(plain), -EINVAL, NULL);
	SO(fcntl(plain, F_GETFD) >= 0);
	IS(syr_map_close(program), -EINVAL, NULL);
	SO(fcntl(program, F_GETFD) >= 0);
	IS(syr_map_close(-1), -EBADF, NULL);
	IS(syr_map_close(map), 0, NULL);
	IS(syr_map_close(map), -EBADF, NULL);
	IS(syr_map_lookup_elem(map, 1, &value), -EBADF, NULL);
	IS(syr_map_close(other), 0, NULL);
	close(plain);
	/* The memory outlives its descriptor. */
	__atomic_store_n(&mapped[1], 44, __ATOMIC_RELEASE);
	SO(__atomic_load_n(&again[1], __ATOMIC_ACQUIRE) == 44);
	IS(syr_map_munmap(NULL), -EINVAL, "not an address");
	IS(syr_map_munmap(mapped + 1), -EINVAL, "not an address");
	IS(syr_map_munmap(mapped), 0, NULL);
	IS(syr_map_munmap(mapped), -EINVAL, "not an address");
	IS(syr_map_munmap(again), 0, NULL);
}

static void *fresh_thread(void *unused)
{
	(void)unused;
	SO(!*syr_last_error());
	IS(syr_register_thread(0, -7), -EINVAL, "-7 is no index");
	return NULL;
}

/* Each thread has its own last error. */
static void last_errors(void)
{
	pthread_t thread;

	IS(syr_map_open(NULL), -EINVAL, "path is NULL");
	SO(!pthread_create(&thread, NULL, fresh_thread, NULL));
	SO(!pthread_join(thread, NULL));
	SO(strstr(syr_last_error(), "path is NULL"));
}

/* ---- sockets ---- */

static in_port_t port_of(int fd)
{
	struct sockaddr_storage address;
	socklen_t len = sizeof(address);

	if (getsockname(fd, (struct sockaddr *)&address, &len))
		return 0;
	return address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
					     : ((struct sockaddr_in *)&address)->sin_port;
}

/* Bound to loopback at `port` (0: a free one), with SO_REUSEPORT if `shared`; TCP listens. */
static int bound(int family, int type, in_port_t port, int shared)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = port};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = port};
	int fd = socket(family, type | SOCK_CLOEXEC, 0), on = 1, failed;

	v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	v6.sin6_addr = in6addr_loopback;
	failed = fd < 0 || (shared && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)));
	if (family == AF_INET6)
		failed = failed || bind(fd, (struct sockaddr *)&v6, sizeof(v6));
	else
		failed = failed || bind(fd, (struct sockaddr *)&v4, sizeof(v4));
	failed = failed || (type == SOCK_STREAM && listen(fd, 16));
	if (failed) {
		perror("calls.c: a socket for the test");
		exit(1);
	}
	return fd;
}

/* Sends one datagram to the group of `fd`; does it arrive there? */
static int arrives_at(int fd, int family)
{
	struct timeval patience = {.tv_sec = 5};
	struct sockaddr_storage address;
	socklen_t len = sizeof(address);
	int sender = socket(family, SOCK_DGRAM, 0), arrived;
	char byte = 1;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	arrived = !getsockname(fd, (struct sockaddr *)&address, &len) &&
		  sendto(sender, &byte, 1, 0, (struct sockaddr *)&address, len) == 1 &&
		  recv(fd, &byte, 1, 0) == 1;
	close(sender);
	return arrived;
}

static void unfit_sockets(in_port_t port)
{
	int pair[2], fd, on = 1;

	IS(syr_register_socket(-1, -1), -EBADF, NULL);
	IS(syr_register_socket(closed_fd(), -1), -EBADF, NULL);
	fd = open("/dev/null", O_RDONLY);
	IS(syr_register_socket(fd, -1), -EINVAL, "no UDP or TCP socket");
	close(fd);
	SO(!pipe(pair));
	IS(syr_register_socket(pair[0], -1), -EINVAL, "no UDP or TCP socket");
	close(pair[0]);
	close(pair[1]);
	SO(!socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	IS(syr_register_socket(pair[0], -1), -EINVAL, "no UDP or TCP socket");
	close(pair[0]);
	close(pair[1]);

	fd = socket(AF_INET, SOCK_DGRAM, 0);
	IS(syr_register_socket(fd, -1), -EINVAL, "not bound");
	close(fd);
	fd = bound(AF_INET, SOCK_DGRAM, 0, 0);
	IS(syr_register_socket(fd, -1), -EINVAL, "without SO_REUSEPORT");
	/* Too late: the group is made at bind. */
	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
	IS(syr_register_socket(fd, -1), -EINVAL, NULL);
	close(fd);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	IS(syr_register_socket(fd, -1), -EINVAL, "not bound");
	close(fd);

	if (!port)
		return;
	/* Of another port than the app's. */
	fd = bound(AF_INET, SOCK_DGRAM, 0, 1);
	IS(syr_register_socket(fd, -1), -EINVAL, "port");
	close(fd);
	/* Groups of its port, each with indexes of its own. */
	fd = bound(AF_INET, SOCK_STREAM, port, 1);
	IS(syr_register_socket(fd, -1), 0, NULL);
	close(fd);
	fd = bound(AF_INET6, SOCK_DGRAM, port, 1);
	IS(syr_register_socket(fd, -1), 0, NULL);
	close(fd);
}

/* Registers a group of sockets of one kind in an app of its own. */
static void group(const char *app, int family, int type)
{
	int first = bound(family, type, 0, 1), program;
	int second = bound(family, type, port_of(first), 1);

	setenv("SYRUP_APP", app, 1);
	IS(syr_register_socket(first, -1), -ENOENT, "no policy");
	GIVES_FD(program, syr_deploy_policy(file("count.o"), "socket-select"));
	IS(syr_register_socket(second, 1), 1, NULL);
	IS(syr_register_socket(first, 0), 0, NULL);
	if (type == SOCK_DGRAM)
		SO(arrives_at(first, family));
	setenv("SYRUP_APP", "capp", 1);
	/* The port is that app's now. */
	close(second);
	close(first);
	close(program);
}

static void sockets(void)
{
	int fds[4], taken, program;
	in_port_t port;

	for (int i = 0; i < 4; i++)
		fds[i] = bound(AF_INET, SOCK_DGRAM, i ? port_of(fds[0]) : 0, 1);
	port = port_of(fds[0]);

	IS(syr_register_socket(fds[0], MAX_EXECUTORS), -EINVAL, "below 256");
	IS(syr_register_socket(fds[0], INT_MAX), -EINVAL, "below 256");
	IS(syr_register_socket(fds[0], -2), -EINVAL, "-2 is no index");
	IS(syr_register_socket(fds[0], INT_MIN), -EINVAL, "no index");
	unfit_sockets(0);

	IS(syr_register_socket(fds[0], -1), 0, NULL);
	IS(syr_register_socket(fds[0], -1), 0, NULL); /* it has one */
	IS(syr_register_socket(fds[1], -1), 1, NULL);
	IS(syr_register_socket(fds[2], MAX_EXECUTORS - 1), MAX_EXECUTORS - 1, NULL);
	IS(syr_register_socket(fds[2], 3), 3, NULL); /* it moves */
	IS(syr_register_socket(fds[3], -1), 2, NULL);
	unfit_sockets(port);

	/* count.o chooses executor 0. */
	SO(arrives_at(fds[0], AF_INET));
	IS(syr_register_socket(fds[3], 0), 0, NULL); /* a taken index */
	SO(arrives_at(fds[3], AF_INET));
	/* A socket that is closed leaves by itself, and its index is free. */
	close(fds[1]);
	IS(syr_register_socket(fds[0], -1), 1, NULL);

	setenv("SYRUP_APP", "capp2", 1);
	GIVES_FD(program, syr_deploy_policy(file("count.o"), "socket-select"));
	IS(syr_register_socket(fds[0], -1), -EBUSY, "belongs to app 'capp'");
	taken = bound(AF_INET, SOCK_DGRAM, 0, 1);
	IS(syr_register_socket(taken, -1), 0, NULL);
	SO(arrives_at(taken, AF_INET));
	close(taken);
	close(program);
	setenv("SYRUP_APP", "capp", 1);
	SO(arrives_at(fds[3], AF_INET));
	for (int i = 0; i < 4; i++)
		close(fds[i]);

	group("capp-tcp", AF_INET, SOCK_STREAM);
	group("capp-udp6", AF_INET6, SOCK_DGRAM);
	group("capp-tcp6", AF_INET6, SOCK_STREAM);
}

/* A parameter that is set, and those that cannot be. */
static void parameters(void)
{
	const char *two[] = {"WHO=2", NULL}, *none[] = {NULL}, *unknown[] = {"WHOM=1", NULL},
		   *large[] = {"WHO=0x100000000", NULL}, *no_value[] = {"WHO", NULL},
		   *no_name[] = {"=1", NULL}, *twice[] = {"WHO=0", "WHO=1", NULL};
	int fds[3], program;

	setenv("SYRUP_APP", "capp-params", 1);
	GIVES_FD(program, syr_deploy_policy_with(file("param.o"), "socket-select", two));
	close(program);
	for (int i = 0; i < 3; i++) {
		fds[i] = bound(AF_INET, SOCK_DGRAM, i ? port_of(fds[0]) : 0, 1);
		IS(syr_register_socket(fds[i], -1), i, NULL);
	}
	SO(arrives_at(fds[2], AF_INET));
	IS(syr_deploy_policy_with(file("param.o"), "socket-select", unknown), -EINVAL, "WHOM");
	IS(syr_deploy_policy_with(file("param.o"), "socket-select", large), -EINVAL,
	   "out of range");
	IS(syr_deploy_policy_with(file("param.o"), "socket-select", no_value), -EINVAL,
	   "NAME=VALUE");
	IS(syr_deploy_policy_with(file("param.o"), "socket-select", no_name), -EINVAL,
	   "NAME=VALUE");
	IS(syr_deploy_policy_with(NULL, "socket-select", two), -EINVAL, "policy_file is NULL");
	SO(arrives_at(fds[2], AF_INET)); /* none of these changed anything */
	GIVES_FD(program, syr_deploy_policy_with(file("param.o"), "socket-select", twice));
	close(program);
	SO(arrives_at(fds[1], AF_INET));
	/* The policy's own value, 0. */
	GIVES_FD(program, syr_deploy_policy_with(file("param.o"), "socket-select", none));
	close(program);
	SO(arrives_at(fds[0], AF_INET));
	GIVES_FD(program, syr_deploy_policy_with(file("param.o"), "socket-select", two));
	close(program);
	GIVES_FD(program, syr_deploy_policy_with(file("param.o"), "socket-select", NULL));
	close(program);
	SO(arrives_at(fds[0], AF_INET));
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	IS(syr_unload("capp-params", "socket-select"), 0, NULL);
	setenv("SYRUP_APP", "capp", 1);
}

/* A socket that is let go is chosen no more, and its index is free. */
static void lets_go(void)
{
	int fds[2], plain = open("/dev/null", O_RDONLY), program;

	setenv("SYRUP_APP", "capp-goes", 1);
	GIVES_FD(program, syr_deploy_policy(file("count.o"), "socket-select"));
	for (int i = 0; i < 2; i++) {
		fds[i] = bound(AF_INET, SOCK_DGRAM, i ? port_of(fds[0]) : 0, 1);
		IS(syr_unregister_socket(fds[i]), -ENOENT, "not registered for app 'capp-goes'");
		IS(syr_register_socket(fds[i], -1), i, NULL);
	}
	IS(syr_unregister_socket(-1), -EBADF, NULL);
	IS(syr_unregister_socket(closed_fd()), -EBADF, NULL);
	IS(syr_unregister_socket(plain), -EINVAL, "no socket");
	IS(syr_unregister_thread(0), -ENOENT, "no policy");
	SO(arrives_at(fds[0], AF_INET));
	IS(syr_unregister_socket(fds[0]), 0, NULL);
	IS(syr_unregister_socket(fds[0]), -ENOENT, "not registered");
	IS(syr_register_socket(fds[1], -1), 1, NULL); /* it keeps its own */
	IS(syr_register_socket(fds[1], 0), 0, NULL);
	SO(arrives_at(fds[1], AF_INET));
	IS(syr_register_socket(fds[0], -1), 1, NULL);
	IS(syr_unregister_socket(fds[1]), 0, NULL);
	IS(syr_unregister_socket(fds[0]), 0, NULL);
	/* Without any it goes on: the next one is its first. */
	IS(syr_register_socket(fds[1], -1), 0, NULL);
	SO(arrives_at(fds[1], AF_INET));

	IS(syr_unload(NULL, NULL), -EINVAL, "hook is NULL");
	IS(syr_unload(NULL, "no-such-hook"), -EINVAL, "no-such-hook");
	IS(syr_unload("No Name", "socket-select"), -EINVAL, "No Name");
	IS(syr_unload("nobodys", "socket-select"), -ENOENT, "nobodys");
	IS(syr_unload(NULL, "scx-syrup"), -ENOENT, "no policy at scx-syrup");
	IS(syr_unload(NULL, "socket-select"), 0, NULL);
	IS(syr_unload(NULL, "socket-select"), -ENOENT, "no policy at socket-select");
	IS(syr_register_socket(fds[0], -1), -ENOENT, "no policy");
	IS(syr_unregister_socket(fds[0]), -ENOENT, "no policy");
	close(program);
	close(plain);
	close(fds[0]);
	close(fds[1]);
	setenv("SYRUP_APP", "capp", 1);
}

/* After fork() the library works in the child as well. */
static void after_fork(const char *hook)
{
	int status = -1;
	pid_t child = fork();

	if (!child) {
		int before = wrong, program;

		GIVES_FD(program, syr_deploy_policy(file("count.o"), hook));
		_exit(wrong != before);
	}
	SO(waitpid(child, &status, 0) == child && !status);
}

/* A process that may open nothing more is told that its policy is live all the same. */
static void no_descriptor_left(const char *hook)
{
	struct rlimit before, few;
	int free = open("/dev/null", O_RDONLY), program;

	close(free);
	SO(!getrlimit(RLIMIT_NOFILE, &before));
	few = before;
	few.rlim_cur = free + 1; /* what speaks to the daemon */
	SO(!setrlimit(RLIMIT_NOFILE, &few));
	IS(syr_deploy_policy(file("count.o"), hook), -EALREADY, "is live at");
	SO(!setrlimit(RLIMIT_NOFILE, &before));
	GIVES_FD(program, syr_deploy_policy(file("count.o"), hook));
	close(program);
}

static void packet(void)
{
	int fd = bound(AF_INET, SOCK_DGRAM, 0, 1), program;

	IS(syr_version(), SYRUP_VERSION, NULL);
	/* Nothing is deployed: the default decides, and we are told so. */
	bad_policies("socket-select");
	IS(syr_deploy_policy(file("broken.c"), "socket-select"), -ENOEXEC, "broken.c:");
	IS(syr_deploy_policy(file("endless.c"), "socket-select"), -EACCES, "endless.c");
	IS(syr_deploy_policy("get-priority", "socket-select"), -EINVAL, "get-priority");
	IS(syr_register_socket(fd, -1), -ENOENT, "no policy");
	IS(syr_register_thread(0, -1), -ENOENT, "no policy");
	IS(syr_map_open("calls"), -ENOENT, "no app 'capp'");
	bad_app_name("socket-select");
	no_daemon("socket-select");

	program = deploys("socket-select", "round-robin", 1);
	IS(syr_deploy_policy(file("broken.c"), "socket-select"), -ENOEXEC, "broken.c:");
	IS(syr_deploy_policy(file("endless.c"), "socket-select"), -EACCES, "endless.c");
	IS(syr_register_thread(0, -1), -ENOENT, "no policy");
	IS(syr_register_socket(program, -1), -EINVAL, "no UDP or TCP socket");
	maps(program);
	close(fd);
	sockets();
	parameters();
	lets_go();
	after_fork("socket-select");
	no_descriptor_left("socket-select");
	last_errors();
	close(program);
}

/* ---- threads ---- */

struct worker {
	pthread_t thread;
	pid_t tid;
	int index;      /* to ask for */
	int registered; /* what it got */
	int class;      /* its scheduling class then */
	int go[2];      /* it ends when it reads a byte */
};

static void *work(void *argument)
{
	struct worker *worker = argument;
	char byte;

	worker->tid = gettid();
	worker->registered = syr_register_thread(0, worker->index);
	worker->class = sched_getscheduler(0);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	SO(write(worker->go[1], "r", 1) == 1);
	while (read(worker->go[1], &byte, 1) < 0 && errno == EINTR)
		;
	return NULL;
}

/* Returns when the thread has registered itself. */
static void start(struct worker *worker, int index)
{
	char byte;

	worker->index = index;
	SO(!socketpair(AF_UNIX, SOCK_STREAM, 0, worker->go));
	SO(!pthread_create(&worker->thread, NULL, work, worker));
	SO(read(worker->go[0], &byte, 1) == 1);
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
}

static void end(struct worker *worker)
{
	SO(write(worker->go[0], "e", 1) == 1);
	SO(!pthread_join(worker->thread, NULL));
	close(worker->go[0]);
	close(worker->go[1]);
	/* The kernel is done with a thread only some time after it was joined. */
	while (!syscall(SYS_tkill, worker->tid, 0))
		sched_yield();
}

static void threads(void)
{
	struct worker workers[4];
	pid_t child;
	int expected[] = {0, 1, 5, 2};

	start(&workers[0], -1);
	start(&workers[1], -1);
	start(&workers[2], 5);
	start(&workers[3], -1);
	for (int i = 0; i < 4; i++) {
		IS(workers[i].registered, expected[i], NULL);
		IS(workers[i].class, SCHED_CLASS_EXT, NULL);
	}
	/* From another thread; it keeps what it has, moves, and takes what another has. */
	IS(syr_register_thread(workers[2].tid, -1), 5, NULL);
	IS(syr_register_thread(workers[2].tid, 7), 7, NULL);
	IS(syr_register_thread(workers[3].tid, 7), 7, NULL);
	IS(syr_register_thread(workers[2].tid, -1), 2, NULL);
	IS(syr_register_thread(workers[1].tid, INT_MAX), INT_MAX, NULL);
	IS(syr_register_thread(0, -2), -EINVAL, "-2 is no index");
	IS(syr_register_thread(0, INT_MIN), -EINVAL, "no index");
	IS(sched_getscheduler(0), SCHED_OTHER, NULL); /* we are none of them */

	/* One that is let go is the kernel's default's again, and its index is free. */
	IS(syr_unregister_thread(workers[3].tid), 0, NULL);
	IS(sched_getscheduler(workers[3].tid), SCHED_OTHER, NULL);
	IS(syr_unregister_thread(workers[3].tid), -ESRCH, "not registered");
	IS(syr_unregister_thread(0), -ESRCH, "not registered");
	IS(syr_unregister_thread(INT_MAX), -ESRCH, NULL);
	IS(syr_register_thread(workers[3].tid, -1), 1, NULL);
	IS(sched_getscheduler(workers[3].tid), SCHED_CLASS_EXT, NULL);
	IS(syr_register_thread(workers[3].tid, 7), 7, NULL);

	/* An index is free again when its thread has ended. */
	end(&workers[0]);
	IS(syr_register_thread(workers[0].tid, -1), -ESRCH, "no thread");
	IS(syr_register_thread(-5, -1), -ESRCH, "no thread -5");
	IS(syr_register_thread(INT_MAX, -1), -ESRCH, "no thread");
	start(&workers[0], -1);
	IS(workers[0].registered, 0, NULL);

	/* Of another process, which is ours or is not. */
	child = fork();
	if (!child) {
		pause();
		_exit(0);
	}
	IS(syr_register_thread(child, 9), 9, NULL);
	IS(sched_getscheduler(child), SCHED_CLASS_EXT, NULL);
	kill(child, SIGKILL);
	SO(waitpid(child, NULL, 0) == child);
	IS(syr_register_thread(child, 9), -ESRCH, "no thread");
	if (geteuid())
		IS(syr_register_thread(1, -1), -EPERM, "belongs to user 0");

	for (int i = 0; i < 4; i++)
		end(&workers[i]);
}

static void thread(void)
{
	int fd = bound(AF_INET, SOCK_DGRAM, 0, 1), program;

	bad_policies("scx-syrup");
	IS(syr_deploy_policy("round-robin", "scx-syrup"), -EINVAL, "round-robin");
	IS(syr_register_thread(0, -1), -ENOENT, "no policy");
	IS(syr_map_open("calls"), -ENOENT, "no app 'capp'");
	bad_app_name("scx-syrup");
	no_daemon("scx-syrup");

	/* What clang does is the same at all hooks; a guest is slow. */
	program = deploys("scx-syrup", "fifo", !geteuid());
	IS(syr_deploy_policy(file("endless.o"), "scx-syrup"), -EACCES, "endless");
	IS(syr_register_socket(fd, -1), -ENOENT, "no policy");
	maps(program);
	threads();
	after_fork("scx-syrup");
	no_descriptor_left("scx-syrup");
	last_errors();
	close(program);
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	folder = argv[2];
	if (!strcmp(argv[1], "packet"))
		packet();
	else
		thread();
	printf("%d rows\n", rows);
	return !!wrong;
}
