/*
 * AF_VSOCK stream sockets for a host program whose guest has the Unix socket backend. Linked with
 * --wrap, so that the program's own calls stay as they are:
 *
 *   connect to (any CID, port)      connects to $VSOCK_PATH and asks for CONNECT port
 *   bind, listen, accept on a port  are those of the Unix socket $VSOCK_PATH_port
 */
#include <errno.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define GUEST_CID 3

int __real_socket(int domain, int type, int protocol);
int __real_connect(int fd, const struct sockaddr *address, socklen_t length);
int __real_bind(int fd, const struct sockaddr *address, socklen_t length);
int __real_accept(int fd, struct sockaddr *address, socklen_t *length);

static struct sockaddr_un unix_address(const char *suffix)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	snprintf(address.sun_path, sizeof(address.sun_path), "%s%s", getenv("VSOCK_PATH"), suffix);
	return address;
}

int __wrap_socket(int domain, int type, int protocol)
{
	return __real_socket(domain == AF_VSOCK ? AF_UNIX : domain, type, protocol);
}

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t length)
{
	const struct sockaddr_vm *vm = (const void *)address;
	struct sockaddr_un target = unix_address("");
	char line[32], byte;

	if (address->sa_family != AF_VSOCK)
		return __real_connect(fd, address, length);
	if (__real_connect(fd, (void *)&target, sizeof(target)) < 0)
		return -1;
	snprintf(line, sizeof(line), "CONNECT %u\n", vm->svm_port);
	if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0)
		return -1;
	do {
		if (recv(fd, &byte, 1, 0) != 1) {
			errno = ECONNRESET; /* what AF_VSOCK says of a port that refuses */
			return -1;
		}
	} while (byte != '\n');
	return 0;
}

int __wrap_bind(int fd, const struct sockaddr *address, socklen_t length)
{
	const struct sockaddr_vm *vm = (const void *)address;
	struct sockaddr_un target;
	char suffix[16];

	if (address->sa_family != AF_VSOCK)
		return __real_bind(fd, address, length);
	snprintf(suffix, sizeof(suffix), "_%u", vm->svm_port);
	target = unix_address(suffix);
	unlink(target.sun_path);
	return __real_bind(fd, (void *)&target, sizeof(target));
}

int __wrap_accept(int fd, struct sockaddr *address, socklen_t *length)
{
	struct sockaddr_vm vm = { .svm_family = AF_VSOCK, .svm_cid = GUEST_CID };
	int client = __real_accept(fd, NULL, NULL);

	if (client >= 0 && address != NULL && *length >= sizeof(vm)) {
		memcpy(address, &vm, sizeof(vm));
		*length = sizeof(vm);
	}
	return client;
}
