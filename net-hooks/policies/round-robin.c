// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Every executor in turn, whatever the input. Evens out the number of inputs
 * per executor when there are few flows, which the default's hash does not.
 *
 * A bad idea when requests differ much in length (a short one lands behind a
 * long one: scan-avoid, sita) or when executors differ in speed (po2), and for
 * protocols that expect the datagrams of a flow at one socket (hash).
 * Maps: none.
 */
#include <syrup/packet.h>

static __u32 next;

__s32 schedule(void *pkt_start, void *pkt_end)
{
	return __sync_fetch_and_add(&next, 1) % syrup_num_executors();
}
