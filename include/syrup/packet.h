/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Input of packet policies. pkt_start is the transport header (UDP or TCP) at
 * every packet hook, so one source fits all of them.
 */
#ifndef SYRUP_PACKET_H
#define SYRUP_PACKET_H

#include <syrup/policy.h>

/* The policy's entry point: an executor's index, SYRUP_PASS or SYRUP_DROP. */
__s32 schedule(void *pkt_start, void *pkt_end);

/* For the input that is being scheduled, when not all inputs have the same number. */
__u32 syrup_nr_executors_here(void);

/*
 * How many executors schedule() may name for this input: the app's sockets, or
 * queues, or cores. Never 0. A server with several groups of sockets (addresses,
 * families, protocols) may have more of them in one than in another.
 */
SYRUP_INLINE __u32 syrup_num_executors(void)
{
	__u32 n = *(const volatile __u32 *)&syrup_nr_executors;

	return n ? n : syrup_nr_executors_here();
}

/* Where the application's bytes start after pkt_start. */
#define SYRUP_UDP_PAYLOAD 8

/*
 * SYRUP_READ(pkt_start, pkt_end, offset, &var): copies sizeof(var) bytes at
 * `offset` bytes after pkt_start into var; false, and var untouched, when the
 * packet is too short. `offset` must be a constant or have an upper bound the
 * verifier can see (mask it). In what an ordinary user deploys it must be a
 * constant: without root's rights the verifier allows no other.
 */
#define SYRUP_READ(pkt_start, pkt_end, offset, var)                                                \
	({                                                                                         \
		void *__syrup_from = (pkt_start) + (offset);                                       \
		bool __syrup_fits = __syrup_from + sizeof(*(var)) <= (pkt_end);                    \
                                                                                                   \
		if (__syrup_fits)                                                                  \
			__builtin_memcpy((var), __syrup_from, sizeof(*(var)));                     \
		__syrup_fits;                                                                      \
	})

#endif /* SYRUP_PACKET_H */
