"""A small ttRPC client for the agent's services, over any connected stream socket.

The messages are those of proto/*.proto, compiled by protoc when the tests run."""

import pathlib
import socket
import struct
import subprocess
import threading

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

TOP = pathlib.Path(__file__).resolve().parents[2]
FILES = ["agent.proto", "health.proto", "ttrpc.proto"]


def load_messages():
    out = subprocess.run(["protoc", f"-I{TOP / 'proto'}", "-I/usr/include", "--include_imports",
                          "--descriptor_set_out=/dev/stdout", *FILES],
                         check=True, stdout=subprocess.PIPE).stdout
    files = descriptor_pb2.FileDescriptorSet.FromString(out)
    pool = descriptor_pool.DescriptorPool()
    for f in files.file:
        pool.Add(f)
    messages, methods = {}, {}
    for f in files.file:
        found = pool.FindFileByName(f.name)
        factory = message_factory.MessageFactory(pool)
        for name, desc in found.message_types_by_name.items():
            messages[f"{f.package}.{name}"] = factory.GetPrototype(desc)
        for name, service in found.services_by_name.items():
            for m in service.methods:
                methods[m.name] = (f"{f.package}.{name}", factory.GetPrototype(m.input_type),
                                   factory.GetPrototype(m.output_type))
    return messages, methods


MESSAGES, METHODS = load_messages()
REQUEST = next(v for k, v in MESSAGES.items() if k.endswith("ttrpc.Request") or k == "ttrpc.Request")
RESPONSE = next(v for k, v in MESSAGES.items() if k.endswith("ttrpc.Response"))


class RpcError(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


class Pending:
    def __init__(self, reply_type):
        self.type, self.event, self.data = reply_type, threading.Event(), None

    def result(self, timeout=90):
        if not self.event.wait(timeout):
            raise TimeoutError("no answer")
        if self.data is None:
            raise ConnectionError("the connection ended")
        rsp = RESPONSE.FromString(self.data)
        if rsp.status.code:
            raise RpcError(rsp.status.code, rsp.status.message)
        return self.type.FromString(rsp.payload)

    @property
    def done(self):
        return self.event.is_set()


class Client:
    """client.Method(field=..., ...) calls; client.start("Method", ...) gives a Pending."""

    def __init__(self, sock):
        self.sock, self.next_id, self.calls = sock, 1, {}
        self.lock = threading.Lock()
        sock.settimeout(None)
        threading.Thread(target=self.receive, daemon=True).start()

    def receive(self):
        try:
            while True:
                length, stream, kind, _ = struct.unpack(">IIBB", self.read(10))
                data = self.read(length)
                call = self.calls.pop(stream, None)
                if call and kind == 2:
                    call.data = data
                    call.event.set()
        except OSError:
            pass
        for call in list(self.calls.values()):
            call.event.set()

    def read(self, n):
        data = b""
        while len(data) < n:
            chunk = self.sock.recv(n - len(data))
            if not chunk:
                raise ConnectionError("closed")
            data += chunk
        return data

    def start(self, method, request=None, **fields):
        service, request_type, reply_type = METHODS[method]
        if request is None:
            request = request_type(**fields)
        payload = REQUEST(service=service, method=method,
                          payload=request.SerializeToString()).SerializeToString()
        with self.lock:
            stream, self.next_id = self.next_id, self.next_id + 2
            call = self.calls[stream] = Pending(reply_type)
            self.sock.sendall(struct.pack(">IIBB", len(payload), stream, 1, 0) + payload)
        return call

    def __getattr__(self, method):
        if method not in METHODS:
            raise AttributeError(method)
        return lambda request=None, timeout=90, **fields: self.start(
            method, request, **fields).result(timeout)

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()
