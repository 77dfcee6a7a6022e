"""A registry on loopback that misbehaves as it is told to."""

import base64
import hashlib
import json
import re
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import oci


class Registry:
    """Holds images; `faults` maps a fault's name to how often it strikes (or True: always)."""

    def __init__(self, tls=None):
        self.manifests, self.blobs, self.faults, self.log = {}, {}, {}, []
        self.basic = self.bearer = None  # "user:password" that is wanted
        self.redirect = None             # another Registry that has the blobs
        handler = type("Handler", (Handler,), {"registry": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def add(self, repository, tag, image):
        for digest, data in image.blobs():
            self.blobs[digest] = data
        manifest = image.manifest()
        self.put(repository, [tag, oci.sha256_bytes(manifest)], manifest, oci.MT_MANIFEST)
        return f"{self.host}/{repository}:{tag}"

    def put(self, repository, names, data, media_type):
        for name in names:
            self.manifests[repository, name] = (data, media_type)

    def strikes(self, fault):
        left = self.faults.get(fault, 0)
        if left and left is not True:
            self.faults[fault] = left - 1
        return bool(left)

    def requests(self, part):
        return [line for line in self.log if part in line]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry = None

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def error(self, status, code, message, **headers):
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.answer(status, body, Content_Type="application/json", **headers)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.registry.log.append(f"POST {self.path} {body}")
        if "refresh_token=idtoken" in body:
            self.answer(200, b'{"access_token":"good"}')
        else:
            self.error(401, "UNAUTHORIZED", "bad refresh token")

    def allowed(self):
        reg, got = self.registry, self.headers.get("Authorization", "")
        if reg.bearer and got != "Bearer good":
            realm = f'Bearer realm="{reg.url}/token",service="fake, really",scope="pull"'
            self.error(401, "UNAUTHORIZED", "no token", WWW_Authenticate=realm)
            return False
        if reg.basic and got != "Basic " + base64.b64encode(reg.basic.encode()).decode():
            self.error(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="fake"')
            return False
        return True

    def token(self):
        want = "Basic " + base64.b64encode(self.registry.bearer.encode()).decode()
        if self.registry.bearer != "anonymous:" and self.headers.get("Authorization") != want:
            self.error(401, "UNAUTHORIZED", "wrong password")
        else:
            self.answer(200, b'{"token":"good"}')

    def do_GET(self):
        reg = self.registry
        auth = self.headers.get("Authorization", "-").split()[0]
        reg.log.append(f"GET {self.path} {self.headers.get('Range', '')} {auth}")
        if self.path.startswith("/token?"):
            self.token()
            return
        if not self.allowed():
            return
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", self.path)
        if reg.strikes("503"):
            self.error(503, "UNAVAILABLE", "overloaded", Retry_After="0")
        elif reg.strikes("429"):
            self.error(429, "TOOMANYREQUESTS", "slow down")
        elif not found:
            self.error(404, "NOT_FOUND", "no such path")
        elif found[2] == "manifests":
            self.manifest(found[1], found[3])
        else:
            self.blob(found[3])

    def manifest(self, repository, name):
        data, media_type = self.registry.manifests.get((repository, name), (None, None))
        if data is None:
            self.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
            return
        if self.registry.strikes("manifest-corrupt"):
            data = data.replace(b"sha256", b"sha257")
        if self.registry.strikes("html"):
            data, media_type = b"<html>captive portal</html>", "text/html"
        if self.registry.strikes("huge-manifest"):
            data = b" " * (6 << 20)
        self.answer(200, data, Content_Type=media_type,
                    Docker_Content_Digest="sha256:" + hashlib.sha256(data).hexdigest())

    def blob(self, digest):
        reg, data = self.registry, self.registry.blobs.get(digest)
        if reg.redirect:
            self.answer(307, Location=f"{reg.redirect.url}{self.path}")
            return
        if data is None:
            self.error(404, "BLOB_UNKNOWN", "blob unknown")
            return
        if reg.strikes("corrupt"):
            data = data[:-1] + bytes([data[-1] ^ 1])
        if reg.strikes("longer"):
            data += b"more"
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        status, offset = 200, 0
        if start and not reg.faults.get("no-range"):
            offset = int(start[1])
            if offset >= len(data):
                self.error(416, "RANGE", "no such range")
                return
            status = 206
        body = data[offset:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {offset}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if len(body) > 3000 and reg.strikes("truncate"):
            self.wfile.write(body[:len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        if len(body) > 3000 and reg.strikes("stall"):
            self.wfile.write(body[:1000])
            self.wfile.flush()
            time.sleep(8)
            self.close_connection = True
            return
        if reg.faults.get("slow"):
            for i in range(0, len(body), 4096):
                self.wfile.write(body[i:i + 4096])
                self.wfile.flush()
                time.sleep(0.05)
            return
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True
