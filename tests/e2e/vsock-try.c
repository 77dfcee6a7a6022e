/* vsock-try CID PORT: what becomes of a connection made from inside the guest. */
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_vm sa = { .svm_family = AF_VSOCK };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	char c;

	if (argc != 3 || fd < 0)
		return 2;
	sa.svm_cid = (unsigned)strtoul(argv[1], NULL, 10);
	sa.svm_port = (unsigned)strtoul(argv[2], NULL, 10);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		puts("refused");
	else if (read(fd, &c, 1) <= 0)
		puts("closed");
	else
		puts("answered");
	return 0;
}
