// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * The server of the cross-layer tests in C; server.rs is the same in Rust and
 * says what both promise. usage: server PORT WORKERS
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <syrup/syrup.h>

#define MAX_WORKERS 32

enum { IDLE, GET, SCAN };

/* bench/src/wire.rs */
struct message {
	uint64_t class;
	uint64_t id;
	uint32_t user;
	uint32_t served_by;
	uint64_t key;
	uint64_t intended_ns;
	uint64_t sent_ns;
	uint64_t overrun_ns;
};
_Static_assert(sizeof(struct message) == 56, "message");

struct worker {
	uint32_t index;
	int socket;
	int registered; /* 0, or a negative errno */
	pid_t tid;
};

static struct worker workers[MAX_WORKERS];
static pthread_barrier_t registered;
static uint64_t *request_type;
static uint64_t order;

static void die(const char *what)
{
	fprintf(stderr, "server.c: %s: %s; %s\n", what, strerror(errno), syr_last_error());
	exit(1);
}

static uint64_t cpu_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1000000ULL + now.tv_nsec / 1000;
}

static int swap(uint64_t *label, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(label, &from, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* The rules of scan-avoid for whoever takes a request ... */
static void take(uint64_t *label, uint64_t last, uint64_t class)
{
	if (class == SCAN)
		__atomic_store_n(label, SCAN, __ATOMIC_RELEASE);
	else if (!swap(label, last, GET))
		swap(label, IDLE, GET);
}

/* ... and for one whose socket is empty: 1 if it may block. */
static int become_idle(struct worker *worker, uint64_t *label, uint64_t last)
{
	struct pollfd arrival = {.fd = worker->socket, .events = POLLIN};
	uint64_t found;

	if (swap(label, last, IDLE))
		return 1;
	found = __atomic_load_n(label, __ATOMIC_ACQUIRE);
	if (found == IDLE)
		return 1;
	if (poll(&arrival, 1, 1) > 0)
		return 0;
	swap(label, found, IDLE);
	return 1;
}

static void serve(struct worker *worker)
{
	uint64_t *label = &request_type[worker->index], last = IDLE, until;
	struct sockaddr_storage from;
	struct message request;
	int flags = MSG_DONTWAIT;
	socklen_t len;

	for (;;) {
		len = sizeof(from);
		if (recvfrom(worker->socket, &request, sizeof(request), flags,
			     (struct sockaddr *)&from, &len) != sizeof(request)) {
			if (errno != EAGAIN && errno != EINTR)
				die("recvfrom");
			flags = become_idle(worker, label, last) ? 0 : MSG_DONTWAIT;
			last = IDLE;
			continue;
		}
		flags = MSG_DONTWAIT;
		request.user = __atomic_load_n(label, __ATOMIC_ACQUIRE);
		take(label, last, request.class);
		last = request.class;
		until = cpu_us() + request.key;
		request.key = __atomic_fetch_add(&order, 1, __ATOMIC_RELAXED);
		request.served_by = worker->index;
		while (cpu_us() < until)
			;
		if (sendto(worker->socket, &request, sizeof(request), 0, (struct sockaddr *)&from,
			   len) != sizeof(request))
			die("sendto");
	}
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	int index;

	worker->tid = gettid();
	index = syr_register_socket(worker->socket, worker->index);
	if (index == (int)worker->index)
		index = syr_register_thread(0, worker->index);
	worker->registered = index == (int)worker->index ? 0 : index < 0 ? index : -EIO;
	pthread_barrier_wait(&registered);
	serve(worker);
	return NULL;
}

static int bound(in_port_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), on = 1, buffer = 8 << 20;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer)) ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)))
		die("bind");
	return fd;
}

/* Of /proc/self/fdinfo. */
static long id_of(int fd, const char *key)
{
	char path[64], line[256];
	long id = -1;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "r");
	while (info && fgets(line, sizeof(line), info))
		if (!strncmp(line, key, strlen(key)))
			id = strtol(line + strlen(key) + 1, NULL, 10);
	if (info)
		fclose(info);
	return id;
}

static void deploy(const char *hook, const char *policy)
{
	int program = syr_deploy_policy(policy, hook);

	if (program < 0) {
		printf("@ %d\n", program);
		fprintf(stderr, "server.c: %s\n", syr_last_error());
		return;
	}
	printf("@ %ld\n", id_of(program, "prog_id"));
	close(program);
}

static void start(uint32_t nr)
{
	int map = syr_map_open("request_type");
	pthread_t thread;

	request_type = map < 0 ? NULL : syr_map_mmap(map);
	if (!request_type)
		die("request_type");
	pthread_barrier_init(&registered, NULL, nr + 1);
	for (uint32_t i = 0; i < nr; i++)
		if (pthread_create(&thread, NULL, work, &workers[i]))
			die("pthread_create");
	pthread_barrier_wait(&registered);
	printf("@ %ld", id_of(map, "map_id"));
	for (uint32_t i = 0; i < nr; i++)
		printf(" %d", workers[i].registered ? workers[i].registered : workers[i].tid);
	putchar('\n');
	if (syr_map_close(map))
		die("syr_map_close");
}

int main(int argc, char **argv)
{
	char line[256], hook[64], policy[128];
	uint32_t nr = argc == 3 ? atoi(argv[2]) : 0;

	if (!nr || nr > MAX_WORKERS)
		return 2;
	for (uint32_t i = 0; i < nr; i++)
		workers[i] = (struct worker){.index = i, .socket = bound(atoi(argv[1]))};
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("@ bound");
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "deploy %63s %127s", hook, policy) == 2)
			deploy(hook, policy);
		else if (!strcmp(line, "start\n"))
			start(nr);
		else
			return 2;
	}
	return 0;
}
