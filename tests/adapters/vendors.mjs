// The vendors' own code for webhooks, as an oracle: a JSON list of questions on stdin, a JSON list of answers on stdout.
import { sign, verify } from "@octokit/webhooks-methods";
import { LinearWebhookClient } from "@linear/sdk/webhooks";
import { readFileSync } from "node:fs";

const ask = {
  github_sign: ({ secret, body }) => sign(secret, Buffer.from(body, "base64").toString()),
  github: async ({ secret, body, signature }) => {
    try {
      return await verify(secret, Buffer.from(body, "base64").toString(), signature);
    } catch {
      return false;
    }
  },
  linear: async ({ secret, body, signature }) => {
    const handler = new LinearWebhookClient(secret).createHandler();
    const headers = signature === null ? {} : { "linear-signature": signature };
    const bytes = Buffer.from(body, "base64");
    const request = new Request("http://localhost/", { method: "POST", headers, body: bytes });
    return (await handler(request)).status;
  },
};

const answers = [];
for (const question of JSON.parse(readFileSync(0))) answers.push(await ask[question.ask](question));
process.stdout.write(JSON.stringify(answers));
