// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * An application in C: a group of sockets, a policy that sends each datagram to
 * the socket that a Map names, and the application writing the Map. Started by
 * c_api.rs; usage: app POLICY.c
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <syrup/syrup.h>

#define NR_SOCKETS 4

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: not so: %s (%s; %s)\n", __FILE__, __LINE__,        \
				#condition, strerror(errno), syr_last_error());                    \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static struct sockaddr_in address = {.sin_family = AF_INET};

static int bound_socket(void)
{
	socklen_t len = sizeof(address);
	struct timeval patience = {.tv_sec = 5};
	int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1;

	CHECK(fd >= 0);
	CHECK(!setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)));
	CHECK(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)));
	CHECK(!bind(fd, (struct sockaddr *)&address, sizeof(address)));
	/* The first one chose the port, the others share it. */
	CHECK(!getsockname(fd, (struct sockaddr *)&address, &len));
	return fd;
}

/* Sends `count` datagrams; each must arrive at `fd`. */
static void expect_all_at(int fd, int count)
{
	char payload[64] = {0};
	int sender = socket(AF_INET, SOCK_DGRAM, 0);

	CHECK(sender >= 0);
	for (int i = 0; i < count; i++) {
		CHECK(sendto(sender, payload, sizeof(payload), 0, (struct sockaddr *)&address,
			     sizeof(address)) == sizeof(payload));
		CHECK(recv(fd, payload, sizeof(payload), 0) == sizeof(payload));
	}
	close(sender);
}

int main(int argc, char **argv)
{
	int sockets[NR_SOCKETS], program, again, map;
	uint64_t value = 0, *mapped;

	CHECK(argc == 2);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (int i = 0; i < NR_SOCKETS; i++)
		sockets[i] = bound_socket();

	/* Before there is a policy, the default decides, and we are told so. */
	CHECK(syr_register_socket(sockets[0], -1) == -ENOENT);
	CHECK(strstr(syr_last_error(), "no policy"));
	CHECK(syr_map_open("steer") == -ENOENT);

	program = syr_deploy_policy(argv[1], "socket-select");
	CHECK(program >= 0);
	CHECK(syr_deploy_policy("/nowhere/policy.c", "socket-select") == -ENOENT);
	CHECK(syr_deploy_policy(argv[1], "no-such-hook") == -EINVAL);

	CHECK(syr_register_socket(sockets[0], -1) == 0);
	CHECK(syr_register_socket(sockets[1], -1) == 1);
	CHECK(syr_register_socket(sockets[3], 3) == 3);
	CHECK(syr_register_socket(sockets[2], 2) == 2);
	CHECK(syr_register_socket(program, -1) < 0);
	CHECK(syr_register_thread(0, -1) == -ENOENT);

	map = syr_map_open("steer");
	CHECK(map >= 0);
	CHECK(syr_map_update_elem(map, 0, 2) == 0);
	CHECK(syr_map_lookup_elem(map, 0, &value) == 0 && value == 2);
	CHECK(syr_map_lookup_elem(map, 2, &value) == -ENOENT);
	CHECK(syr_map_update_elem(map, 2, 0) == -ENOENT);
	expect_all_at(sockets[2], 20);

	mapped = syr_map_mmap(map);
	CHECK(mapped);
	CHECK(syr_map_close(map) == 0);
	CHECK(syr_map_close(map) == -EBADF);
	CHECK(__atomic_load_n(&mapped[0], __ATOMIC_ACQUIRE) == 2);
	/* The policy counts in the second entry. */
	CHECK(__atomic_load_n(&mapped[1], __ATOMIC_ACQUIRE) == 20);
	for (int i = 0; i < NR_SOCKETS; i++) {
		__atomic_store_n(&mapped[0], i, __ATOMIC_RELEASE);
		expect_all_at(sockets[i], 20);
	}
	CHECK(__atomic_load_n(&mapped[1], __ATOMIC_ACQUIRE) == 20 + NR_SOCKETS * 20);

	/* Deploying again replaces; sockets and Maps stay. */
	again = syr_deploy_policy(argv[1], "socket-select");
	CHECK(again >= 0);
	expect_all_at(sockets[NR_SOCKETS - 1], 20);
	CHECK(fcntl(program, F_GETFD) >= 0);
	close(program);
	close(again);

	CHECK(syr_map_munmap(mapped) == 0);
	CHECK(syr_map_munmap(mapped) == -EINVAL);
	puts("ok");
	return 0;
}
