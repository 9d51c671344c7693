/*
 * xsave - lets User-Mode-Linux 6.1 run where a processor has more state than it has room for
 *
 * UML reads and writes the registers of its processes by ptrace into a buffer of fixed size. With AMX the
 * kernel's XSAVE area is larger, and UML panics at its first process. Preloaded, this hands over what fits,
 * and keeps of the rest what the process had: UML's own programs do not touch it.
 *
 * Source: ptrace(2), PTRACE_GETREGSET; Intel SDM volume 1, 13.4 (the header of the area, XSTATE_BV first).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { XSTATE = 0x202, XSTATE_BV = 512, SMALL_STATES = 0x1ffff /* all below AMX */ };

static char area[1 << 16] __attribute__((aligned(64)));

static long fetch_area(long pid, struct iovec *whole) {
  whole->iov_base = area;
  whole->iov_len = sizeof area;
  return syscall(SYS_ptrace, PTRACE_GETREGSET, pid, XSTATE, whole);
}

static long transfer(int request, long pid, struct iovec *theirs) {
  struct iovec whole;
  if (fetch_area(pid, &whole) < 0) return -1;
  size_t size = theirs->iov_len < whole.iov_len ? theirs->iov_len : whole.iov_len;
  if (request == PTRACE_GETREGSET) {
    memcpy(theirs->iov_base, area, size);
    theirs->iov_len = size;
    return 0;
  }
  uint64_t had, given;
  memcpy(&had, area + XSTATE_BV, sizeof had);
  memcpy(area, theirs->iov_base, size);
  memcpy(&given, area + XSTATE_BV, sizeof given);
  given = (given & SMALL_STATES) | (had & ~(uint64_t)SMALL_STATES);
  memcpy(area + XSTATE_BV, &given, sizeof given);
  return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, XSTATE, &whole);
}

long ptrace(enum __ptrace_request request, ...) {
  va_list list;
  va_start(list, request);
  long pid = va_arg(list, int);
  void *address = va_arg(list, void *);
  void *data = va_arg(list, void *);
  va_end(list);
  if ((request == PTRACE_GETREGSET || request == PTRACE_SETREGSET) && (long)address == XSTATE)
    return transfer(request, pid, data);
  if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
    long word; /* the call stores it, libc's function returns it */
    if (syscall(SYS_ptrace, request, pid, address, &word) < 0) return -1;
    errno = 0;
    return word;
  }
  return syscall(SYS_ptrace, request, pid, address, data);
}
