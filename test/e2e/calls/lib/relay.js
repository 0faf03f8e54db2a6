// What stands between a page and the server, and can be cut or made worse.

import dgram from "node:dgram";
import net from "node:net";

/** Forwards TCP connections. */
export class Relay {
    /** Listens on a free port and forwards to `target` ("host:port"). */
    static async to(target) {
        const relay = new Relay();
        const [, host, port] = target.match(/^\[?(.+?)\]?:(\d+)$/);
        relay.target = { host, port: Number(port) };
        relay.sockets = new Set();
        relay.opened = 0;
        relay.refuse = false;
        relay.listener = net.createServer((client) => relay.join(client));
        await new Promise((resolve) => relay.listener.listen(0, "127.0.0.1", resolve));
        relay.port = relay.listener.address().port;
        return relay;
    }

    join(client) {
        if (this.refuse) return client.destroy();
        this.opened++;
        const server = net.connect(this.target);
        for (const s of [client, server]) {
            this.sockets.add(s);
            s.on("error", () => s.destroy());
            s.on("close", () => {
                this.sockets.delete(s);
                client.destroy();
                server.destroy();
            });
        }
        client.pipe(server).pipe(client);
    }

    /** Breaks all connections and refuses new ones. */
    cut() {
        this.refuse = true;
        for (const s of this.sockets) s.destroy();
    }

    heal() {
        this.refuse = false;
    }

    close() {
        this.cut();
        return new Promise((resolve) => this.listener.close(resolve));
    }
}

/** Forwards UDP packets to a port of this machine, and loses `loss` percent of them. */
export class PacketRelay {
    loss = 0;
    #clients = new Map();

    static async to(port) {
        const relay = new PacketRelay();
        relay.target = port;
        relay.socket = dgram.createSocket("udp4");
        relay.socket.on("message", (packet, from) => relay.#pass(relay.#client(from), packet, port));
        await new Promise((resolve) => relay.socket.bind(0, "127.0.0.1", resolve));
        relay.port = relay.socket.address().port;
        return relay;
    }

    /** The socket that speaks to the server for one client. */
    #client(from) {
        const key = `${from.address} ${from.port}`;
        let socket = this.#clients.get(key);
        if (!socket) {
            socket = dgram.createSocket("udp4");
            socket.on("message", (packet) => this.#pass(this.socket, packet, from.port, from.address));
            this.#clients.set(key, socket);
        }
        return socket;
    }

    #pass(socket, packet, port, address = "127.0.0.1") {
        if (Math.random() * 100 >= this.loss) socket.send(packet, port, address, () => {});
    }

    close() {
        for (const s of [this.socket, ...this.#clients.values()]) s.close();
    }
}
